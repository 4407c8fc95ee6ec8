"""Where judged groups come from: one small file a published format."""
