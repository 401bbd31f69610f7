"""Read what people have (folders, tables, archives, object stores) into a `Corpus`."""
