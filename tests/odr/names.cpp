// Everything a cache can do, for the test odr.names, which looks at the names of its functions.
#include <xquant/xquant.hpp>

template class xquant::XCache<>;
