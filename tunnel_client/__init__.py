"""The qanat command: what a person uses. Imports neither grpc nor epoll."""
