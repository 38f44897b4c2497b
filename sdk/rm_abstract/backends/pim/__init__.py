"""Processing in memory: UPMEM's DIMMs compute the projections of the decode, the host everything else."""
