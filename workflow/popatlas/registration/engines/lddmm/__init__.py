"""Large deformations by velocities that change with time (LDDMM) as engine."""
