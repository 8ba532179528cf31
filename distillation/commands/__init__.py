"""The subcommands of `distill`, one file each; `distillation.cli` lists them."""
