"""Used by all steps: errors, files, tables, columns, threads, progress, nearest rows."""
