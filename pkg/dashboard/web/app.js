document.title = "Culvert";
