// Names the table of kernels that a source gives for the instruction set it is compiled for.
#pragma once

#ifndef FIRSTLIGHT_LEVEL
#error "compiled by build.py, once per instruction set"
#endif

#define FIRSTLIGHT_JOIN(name, level) name##_##level
#define FIRSTLIGHT_TABLE(name, level) FIRSTLIGHT_JOIN(name, level)
