"""The Open Inference Protocol, both ways, without a web framework."""
