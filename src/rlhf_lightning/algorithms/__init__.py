"""What makes one algorithm differ from another: advantages, losses, reward transforms, KL terms, and what is measured.

Each file holds the built-in plug-ins of a kind. A new one is a class in its kind's file, or a file of its own here.
"""
