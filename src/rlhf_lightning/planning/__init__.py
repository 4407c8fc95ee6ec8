"""What a run will need, told before any weights are loaded: memory, devices, operations, time and cost."""
