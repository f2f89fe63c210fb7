"""JSON Schema and AsyncAPI of every message.

They are made from the types that read and write the messages. Begin with `documents`.
"""
