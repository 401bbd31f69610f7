"""Read folders, tables, archives and object stores into a `Corpus`."""
