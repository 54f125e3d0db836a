#include "support/compiled/scalar.hpp"

XQUANT_COMPILE_CACHE(xquant::backend::scalar);
