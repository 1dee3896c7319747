"""What the tests stand on: real S3 servers, a proxy that breaks things, a watch, a second opinion."""
