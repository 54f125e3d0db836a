#include "support/compiled/emulated.hpp"

XQUANT_COMPILE_CACHE(xquant::backend::int8<xquant::backend::on_device<xquant::backend::EmulatedDevice>>);
