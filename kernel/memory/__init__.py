"""Memory: private keys and values of a process, and regions that processes share. Quotas limit both."""
