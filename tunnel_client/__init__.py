"""The ``qanat`` command. Imports neither grpc nor epoll."""
