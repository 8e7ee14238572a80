# SPDX-License-Identifier: Apache-2.0
"""Data sets, mappers and streams shared by all methods; modules are imported by name, nothing is loaded here."""
