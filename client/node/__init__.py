"""The program that runs at a site: connection, messages, journal, ledger, worker."""
