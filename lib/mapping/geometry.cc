#include "lib/mapping/geometry.h"
