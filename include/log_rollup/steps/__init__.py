"""The steps of an hour, in their order: wait, plan, pack, validate, complete. No step imports another one."""
