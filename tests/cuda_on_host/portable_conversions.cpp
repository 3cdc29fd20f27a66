// The same without the processor's own instructions.
#undef __F16C__
#include "tests/cuda_on_host/native_conversions.cpp"
