"""HTTP mode: requests are read, rewritten and answered one by one."""
