"""The paper's idea, one file each: where to look (cam), what to take out (mask), what to put in (fill)."""
