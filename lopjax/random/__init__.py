"""Random numbers: standard normals from one word each, and the words of Philox 2x32."""
