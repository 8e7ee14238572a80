# SPDX-License-Identifier: Apache-2.0
"""One module per measured claim: ``python -m benchmarks.<name>``, the last line is one JSON object."""
