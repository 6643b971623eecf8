"""The process that recurra runs in: devices, distributed processes and signals."""
