"""What every step needs: errors, files, tables, columns, threads, counters, nearest rows."""
