"""How a stage starts and runs: entry, machine, device, progress, processes, memory, signals."""
