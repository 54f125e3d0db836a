// The schemes that have a name. XQUANT_REGISTRY_COMPILED is defined for all other files, which leave them out.
#include <xquant/instantiate.hpp>
#include <xquant/registry.hpp>

XQUANT_COMPILE_REGISTRY();
