#!/usr/bin/env bash
echo asya/node:v1.34.4
