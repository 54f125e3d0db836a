// The library's version. The build reads it from here.
#pragma once

#define XQUANT_VERSION_MAJOR 0
#define XQUANT_VERSION_MINOR 1
#define XQUANT_VERSION_PATCH 0
