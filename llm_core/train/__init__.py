"""One training loop, and the stages pretrain and sft that use it."""
