# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Checkpoints between this package and the Hub: conversion of the original ones, and model cards."""
