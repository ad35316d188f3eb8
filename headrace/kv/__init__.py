"""Keys and values, from write to read: pages (pool), who has which (tables), what can be reused (prefix), cache."""
