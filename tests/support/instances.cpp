#include "support/instances.hpp"

XQUANT_COMPILE_CACHE(xquant::backend::best);
