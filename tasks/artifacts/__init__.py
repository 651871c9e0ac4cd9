"""What stages write and read: records, tables, arrays, pixels; every write atomic."""
