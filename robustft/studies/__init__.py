"""Studies: many runs, one command, results that stay. Nothing else imports them."""
