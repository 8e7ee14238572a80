# SPDX-License-Identifier: Apache-2.0
"""What a trained PADing does: figures and the pass over the evaluation set that they are drawn from."""
