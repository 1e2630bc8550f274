// The kernels of volumes for one instruction set; setup.py adds the compiler's flags by this file's name.
#define EQK_ISA avx2
#include "volumes.h"
