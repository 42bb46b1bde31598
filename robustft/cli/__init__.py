"""How a command becomes a run: configs composed and checked, folders named and guarded, other commands."""
