"""JSON Schema and AsyncAPI of every message, from the types that read and write them. Begin with `documents`."""
