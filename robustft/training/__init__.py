"""The loop: optimiser steps, callbacks, checkpoints, loggers."""
