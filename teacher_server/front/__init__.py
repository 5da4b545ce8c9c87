"""What stands before the service: HTTP, gRPC, and the process that listens."""
