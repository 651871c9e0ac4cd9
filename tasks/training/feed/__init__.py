"""What the trained layers read: activations of the frozen ones, cached or computed, or pixels."""
