"""What runs a program on an NVIDIA GPU, through the driver's own interface."""
