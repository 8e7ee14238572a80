# SPDX-License-Identifier: Apache-2.0
"""Tables of data sets: names, classes, folders; everything that ``catalog`` registers."""
