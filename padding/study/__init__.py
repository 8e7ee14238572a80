# SPDX-License-Identifier: Apache-2.0
"""Studies of PADing: tables of rows and seeds, equal tuning, sweeps over gamma and thresholds."""
