module rm-abstract.io/rma-launch

go 1.26
