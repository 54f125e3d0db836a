#include "compiled/best.hpp"

XQUANT_COMPILE_CACHE(xquant::backend::best);
