"""Transport and durable storage around the sans-I/O core: gRPC mailbox, TLS files, SQLite marks."""
