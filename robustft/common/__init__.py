"""What every room uses: errors, files, locks, caches, processes, the terminal. It imports none of them."""
